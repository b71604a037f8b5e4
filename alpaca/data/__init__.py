"""Rows: read any supported file or hub data set into validated examples."""

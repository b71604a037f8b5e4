"""Other engines and trainers, each in an environment of its own, measured in one run with this project's."""

"""The gateway: OpenAI's routes, a fair queue, keys, metrics and a page, in front of servers of Cog's."""

"""The files of infra/, checked by the tools that read them."""

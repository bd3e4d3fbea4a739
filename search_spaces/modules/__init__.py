"""The torch networks that configs build; imported only when a config is built."""

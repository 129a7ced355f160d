"""One file a system: its network, its configuration, its published sizes."""

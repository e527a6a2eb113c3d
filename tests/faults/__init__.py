"""What breaks on a cluster, broken on purpose."""

"""What RL and dev evaluation play: task apps, the gateway, judges."""

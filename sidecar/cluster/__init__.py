"""What else touches Kubernetes: injection, ConfigMaps that are edited, many pods at a glance."""

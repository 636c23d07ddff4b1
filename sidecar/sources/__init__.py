"""Where documents come from: mounted files, or the Kubernetes API. Reads, watches, decides nothing.

A source turns its place into snapshots and never judges what is in them. ``kube`` imports the
Kubernetes client (about 0.5 s and 30 MB), so only who watches through the API imports that module.
"""

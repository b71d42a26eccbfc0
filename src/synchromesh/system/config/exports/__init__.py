"""What runs a system's replicas elsewhere: files for Kubernetes, for compose, and for systemd.

Each is made of one `DeploymentPlan`. Nothing in them is a secret: they name the variables in which one is.
"""

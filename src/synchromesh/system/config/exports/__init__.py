"""What runs a system's replicas elsewhere: files for Kubernetes, for compose, and for systemd.

Each is made of one `DeploymentPlan`. No secret is in them: they name the variables that have one.
"""

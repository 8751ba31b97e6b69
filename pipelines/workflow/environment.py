"""The environment variables of the workflow; peco/core/environment.py has those that a stage reads.

Besides these, each key of the resources has a variable (pipelines/workflow/stage_resources.py).
"""

from __future__ import annotations

from peco.core.environment import Variable

SCHEDULER = Variable(
    "PECO_SCHEDULER", "where a stage runs: `local_cwd` (here), `kubernetes` (Volcano) or `slurm`", "local_cwd"
)
GRACE_SECONDS = Variable("PECO_GRACE_SECONDS", "whole seconds in which a stopped stage may save its work", "60")
SWEEP_LIMIT = Variable("SWEEP_LIMIT", "maximum number of points of a sweep", "100")
EXPERIMENTS = Variable(
    "PECO_EXPERIMENTS",
    "marks the processes of `make compare` and `make ablation`",
)
JOB_KEY = Variable("PECO_JOB_KEY", "identifies a stage's job on a cluster; by default a hash of what it computes")

PLAN = Variable("PECO_PLAN", "set by `make repro`: file of its plan, in which the stages note that they are done")

NAMESPACE = Variable("PECO_NAMESPACE", "namespace of the jobs")
IMAGE = Variable("PECO_IMAGE", "image of steps and jobs")
PULL_POLICY = Variable("PECO_PULL_POLICY", "`IfNotPresent`, `Always` or `Never`", "IfNotPresent")
VOLUME_CLAIM = Variable("PECO_VOLUME_CLAIM", "claim of the shared volume")
VOLUME_PATH = Variable("PECO_VOLUME_PATH", "where the shared volume is mounted, in steps and jobs", "/peco")
SERVICE_ACCOUNT = Variable("PECO_SERVICE_ACCOUNT", "service account of the jobs' pods, which get no token")
JOB_SECRET = Variable("PECO_JOB_SECRET", "a secret whose keys become environment variables of the jobs")
STEP_SECRET = Variable("PECO_STEP_SECRET", "a secret whose keys become environment variables of the steps")
CA_CONFIGMAP = Variable(
    "PECO_CA_CONFIGMAP", "a config map whose key `ca.crt` holds all certificates that steps and jobs trust"
)
API_PATIENCE_SECONDS = Variable(
    "PECO_API_PATIENCE_SECONDS", "how long the cluster's API may be unreachable before a step gives up", "300"
)
POD_NAME = Variable("PECO_POD_NAME", "name of the pod that owns the job: the job is deleted with it")
POD_UID = Variable("PECO_POD_UID", "its uid")
UMASK = Variable(
    "PECO_UMASK", "umask of the steps, in octal: the rights of what they write to the shared volume", "022"
)

RUN = Variable("PECO_RUN", "id of the run that a step belongs to")
WORKSPACES = Variable("PECO_WORKSPACES", "folder in which steps work", ".work/pipeline/workspaces")
CACHE = Variable("PECO_CACHE", "DVC cache that all steps share")
REMOTE = Variable("PECO_REMOTE", "address of a DVC remote, instead of the commit's default one")
REMOTE_ENDPOINT = Variable("PECO_REMOTE_ENDPOINT", "address of the S3 server of PECO_REMOTE")
GIT_CREDENTIALS = Variable(
    "PECO_GIT_CREDENTIALS", "folder with `password` and `username`, or with `ssh-privatekey` and `known_hosts`"
)
STORAGE_SECRET = Variable("PECO_STORAGE_SECRET", "secret with the keys of the DVC remote", "peco-storage")
GIT_READ_SECRET = Variable("PECO_GIT_READ_SECRET", "secret with which steps read the git remote", "peco-git-read")
GIT_WRITE_SECRET = Variable("PECO_GIT_WRITE_SECRET", "secret with which `collect` writes to it", "peco-git-write")

# Where the config map of PECO_CA_CONFIGMAP is mounted, and the variables that lead Python, git and the clients of buckets to it.
CA_FOLDER = "/etc/peco/ca"
CA_VARIABLES = dict.fromkeys(
    ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE", "GIT_SSL_CAINFO"), f"{CA_FOLDER}/ca.crt"
)

"""Cloud TPUs by Google's API: what state a TPU is in, deleting it, and making it again as it was.

TensorFlow's own client looks up addresses alone, by version 1 of the API, which does not make
TPU VMs; this is version 2 (cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes).
"""

import os
from urllib.error import URLError

import httplib2
from googleapiclient import discovery
from googleapiclient.errors import HttpError
from oauth2client.client import (
    ApplicationDefaultCredentialsError,
    GoogleCredentials,
    HttpAccessTokenRefreshError,
)

from configs.errors import UserError
from mesh.compat import tpu_client

# What a TPU is made of; all else the API says of it follows.
MADE_OF = ("acceleratorType", "bootDiskConfig", "dataDisks", "description", "labels", "metadata",
           "networkConfig", "networkConfigs", "runtimeVersion", "schedulingConfig",
           "serviceAccount", "shieldedInstanceConfig", "tags")
# google.rpc.Code: DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED (no such TPU is free now), ABORTED,
# INTERNAL and UNAVAILABLE may be other tomorrow.
PASSING = (4, 8, 10, 13, 14)
# Tries of a request, by Google's client, which waits 1 s, 2 s, … at most between them.
_TRIES = 4


class Silent(UserError):
    """The API or a TPU does not answer, or is not able to now."""


class Nodes:
    """The TPU called `name`.

    Args:
      name: its name.
      zone, project: where it is; None for those of this machine.

    Raises:
      UserError: this machine knows no zone, project or credentials.
    """

    def __init__(self, name, zone, project):
        self._name = name
        self.where = f"in zone {zone or '(this machine)'} of project {project or '(this machine)'}"
        try:
            client = tpu_client.Client(tpu=name, zone=zone, project=project)
        except URLError as error:
            raise UserError(f"--tpu {name}: give --tpu_zone and --gcp_project; this machine's "
                            "metadata server, which knows them on Google Cloud, does not answer "
                            f"({error})") from error
        self._full_name = client._full_name()
        self._parent = self._full_name.rpartition("/nodes/")[0]

    def get(self):
        """What the API says of the TPU, a dict; None if there is none of that name."""
        try:
            return self._do(lambda nodes: nodes.get(name=self._full_name))
        except HttpError as error:
            if error.resp.status == 404:
                return None
            raise self._refused(error) from error

    def delete(self):
        """Has the TPU deleted."""
        try:
            self._do(lambda nodes: nodes.delete(name=self._full_name))
        except HttpError as error:
            if error.resp.status != 404:
                raise self._refused(error) from error

    def create(self, node):
        """Has the TPU made.

        Args:
          node: what `get` said of an earlier one, or at least its acceleratorType and
            runtimeVersion.

        Returns:
          the name of an operation; None if there is such a TPU by now.
        """
        body = {key: node[key] for key in MADE_OF if node.get(key)}
        if "networkConfig" in body:
            body.pop("networkConfigs", None)  # the same, as the API tells it
        try:
            return self._do(lambda nodes: nodes.create(
                parent=self._parent, nodeId=self._name, body=body))["name"]
        except HttpError as error:
            if error.resp.status == 409:
                return None
            raise self._refused(error) from error

    def failure(self, operation):
        """Why an operation has failed; None if it has not, or not yet.

        Raises:
          UserError: for a reason that time does not mend.
        """
        try:
            done = self._do(lambda nodes: nodes.get(name=operation), "operations")
        except HttpError as error:
            raise self._refused(error) from error
        error = done.get("error") if done.get("done") else None
        if error and error.get("code") not in PASSING:
            raise UserError(f"--tpu {self._name}: it cannot be made: {error.get('message')}")
        return error and (error.get("message") or f"code {error.get('code')}")

    def _do(self, request, collection="nodes"):
        """Sends a request(collection of the API); returns the answer, a dict.

        Raises:
          HttpError: the answer is a refusal.
          UserError: there are no credentials.
          Silent: there is no answer.
        """
        try:
            locations = discovery.build(
                "tpu", "v2", credentials=GoogleCredentials.get_application_default(),
                discoveryServiceUrl=os.environ.get("TPU_API_DISCOVERY_URL"),
                cache_discovery=False).projects().locations()
            return request(getattr(locations, collection)()).execute(num_retries=_TRIES)
        except (ApplicationDefaultCredentialsError, HttpAccessTokenRefreshError) as error:
            raise UserError(f"--tpu {self._name}: no Google Cloud credentials here; `gcloud auth "
                            "application-default login` makes them, or "
                            "GOOGLE_APPLICATION_CREDENTIALS names a service account's key"
                            ) from error
        except (OSError, httplib2.HttpLib2Error) as error:
            raise Silent(f"--tpu {self._name}: the TPU API does not answer ({error})") from error

    def _refused(self, error):
        """The UserError of an HttpError."""
        status, reason = error.resp.status, error.reason
        if status == 429 or status >= 500:
            return Silent(f"--tpu {self._name}: the TPU API is not able to answer now ({reason})")
        if status in (401, 403):
            return UserError(f"--tpu {self._name}: the TPU API lets these credentials see no TPU "
                             f"{self.where} ({reason}): enable the API, and give the account the "
                             "role TPU Viewer, or for --recreate_tpu TPU Admin")
        return UserError(f"--tpu {self._name}: the TPU API refuses it {self.where} ({reason})")

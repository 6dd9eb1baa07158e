"""Deletes the deployments with the tag of the pull request PULL_REQUEST."""

import os

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

tag = f"pull-request-{int(os.environ['PULL_REQUEST'])}"
with get_client(sync_client=True) as client:
    of_it = DeploymentFilter(tags=DeploymentFilterTags(all_=[tag]))
    while found := client.read_deployments(deployment_filter=of_it):
        for deployment in found:
            client.delete_deployment(deployment.id)
            print(f"Deleted {deployment.name}")

"""From one federation file to a CA, certificates and a startup kit for each participant."""

from prefect_federated.provisioning.federation_file import FederationFile, load_federation_file
from prefect_federated.provisioning.report import KitReport, KitStatus, ProvisionReport
from prefect_federated.provisioning.workspace import Plan, plan_provisioning, provision

__all__ = [
    "FederationFile",
    "KitReport",
    "KitStatus",
    "Plan",
    "ProvisionReport",
    "load_federation_file",
    "plan_provisioning",
    "provision",
]

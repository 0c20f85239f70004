"""`python -m prefect_federated` is the command `prefect-federated`."""

from prefect_federated.cli import main

if __name__ == "__main__":
    main()

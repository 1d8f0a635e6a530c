"""What EC2 costs, by AWS's Price List; None where it names no price or may not be asked."""

import json

from mmattn.remote.aws import CloudError, client, explained

ADDRESS = 0.005  # an hour of a public IPv4 address, in every region


def on_demand(region: str, instance_type: str) -> float | None:
    """Dollars an hour of an instance type with Linux."""
    return _highest(
        region,
        instanceType=instance_type,
        operatingSystem="Linux",
        operation="RunInstances",
        tenancy="Shared",
        capacitystatus="Used",
        preInstalledSw="NA",
    )


def disk(region: str) -> float | None:
    """Dollars an hour of a GiB of a gp3 volume."""
    month = _highest(region, productFamily="Storage", volumeApiName="gp3")
    return month and month / 730


def _highest(region: str, **attributes: str) -> float | None:
    """The highest price in dollars of the products with these attributes, and so a bound."""
    filters = [
        {"Type": "TERM_MATCH", "Field": name, "Value": value}
        for name, value in {"regionCode": region, **attributes}.items()
    ]
    try:
        with explained("pricing:GetProducts"):
            found = client("pricing", "us-east-1").get_products(  # few regions answer
                ServiceCode="AmazonEC2", Filters=filters
            )
    except CloudError:
        return None
    prices = [
        float(dimension["pricePerUnit"].get("USD", 0))
        for product in map(json.loads, found["PriceList"])
        for term in product["terms"].get("OnDemand", {}).values()
        for dimension in term["priceDimensions"].values()
    ]
    return max(prices, default=0) or None

"""What operator and service share: resources, names, catalog, layout, errors, telemetry.

Imported by every other package, imports none of them, and needs neither a cluster nor a web server.
"""

__version__ = "0.1.0"

API_GROUP = "polaris.dev"
API_VERSION = "v1alpha1"

# The level of the catalog that this code is written for. A migration that takes away what older code
# uses raises `catalog.oldest_code` to the level of the first code that no longer needs it.
# The level is the number of the newest migration, which writes it into `catalog.level`.
CATALOG_LEVEL = 5

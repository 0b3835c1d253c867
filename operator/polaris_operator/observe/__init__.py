"""What there is: reads PostgreSQL, the catalog, Vault and Secrets; changes nothing."""

"""The real parts that tests run against: PostgreSQL of three versions, and OpenBao."""

"""For operators, under `/v1/admin`: versions, servers, slow queries, rejected images."""

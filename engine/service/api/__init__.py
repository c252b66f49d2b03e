"""The HTTP interface: routes, requests, answers, problems, the OpenAPI document."""

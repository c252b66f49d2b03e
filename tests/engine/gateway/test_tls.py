from __future__ import annotations

import numpy as np
import pytest

from hashlight.engine.client.client import SearchClient
from hashlight.engine.client.errors import ConnectionFailedError
from hashlight.engine.service.api.app import create_app
from hashlight.engine.service.door.http_server import BoundedHttp
from tests import serving
from tests.engine.service.test_router import certificates

__all__ = ["certificates"]


def test_https_with_a_certificate_that_the_client_trusts(searcher, certificates, tmp_path, monkeypatch):
    certificate, private_key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(certificates[0])
    private_key.write_bytes(certificates[1])
    with serving.running(create_app(searcher), certificate=certificate, private_key=private_key) as url:
        assert url.startswith("https://127.0.0.1:")
        with SearchClient(url, max_retries=0) as client, pytest.raises(ConnectionFailedError, match="certificate"):
            client.describe()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with SearchClient(url) as client:
            assert client.describe()["rows"] == 500


def test_answers_of_any_size_go_out_over_one_https_connection(searcher, certificates, tmp_path, monkeypatch):
    certificate, private_key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(certificates[0])
    private_key.write_bytes(certificates[1])
    monkeypatch.setattr(BoundedHttp, "write_s", 10)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    queries = np.arange(200, dtype=np.uint64)[:, None]
    with (
        serving.running(create_app(searcher), certificate=certificate, private_key=private_key) as url,
        SearchClient(url, max_retries=0) as client,
    ):
        for count in (1, 200, 1, 2, 200):
            found = client.search(queries[:count], 500)
            assert [len(hits) for hits in found] == [500] * count

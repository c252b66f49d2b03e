from tests.engine.gateway.conftest import collection, searcher, url

__all__ = ["collection", "searcher", "url"]

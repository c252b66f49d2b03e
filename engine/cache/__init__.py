"""What this machine keeps of collections in buckets, in the user's cache folder, up to a size.

::

    collections/HASH/           of one location
        shards/NAME/            what was fetched: as in the collection, complete or absent
        deletions/, columns/, encoder/
        used/                   an empty file for each of them: when it was last used
        .locks                  who fetches what, and who has it open
    collections/.lock           held while room is made

`engine.cache.cache.Cache` fetches whatever is not there, by ranges that are read in parallel. Two processes fetch one
item once. Where the size is exceeded, what was used least recently is removed, never what any process has open.
"""

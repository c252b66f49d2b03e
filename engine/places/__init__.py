"""Places: the one way to read and write bytes, in a folder of this machine or in a bucket.

`engine.places.opening.open_place(location)` returns a `Place`: a `Folder`, a `Bucket` (S3, GCS, Azure) or, read only,
any other file system that fsspec knows. Names are relative to the place, with `/`; the empty name is the place itself,
so that `open_place(FILE).read()` reads one file.

====================================  =================================================================================
``read``, ``read_many``               whole files; from a bucket, many in parallel, in order
``read_range``                        a part of a file
``open``                              a file to read at any position (pyarrow, tarfile, gzip)
``find``, ``replace``                 a file with its tag, and the compare-and-swap that needs it
``put``, ``put_new``                  a small file in one step; `put_new` only if it does not exist
``scratch``, ``put_file``             a large file: write it locally, then publish it
``new_folder``                        a folder, written locally; nobody reads it before it is complete
``exists``, ``entry``                 whether a file is there; what is at a name
``names``, ``children``, ``walk``     one folder's names or entries; every file below it, as a stream
``remove``, ``remove_leftovers``      a file or folder; temporary files of killed writers
``lock``                              one writer at a time; in a bucket, checks that it supports conditional puts
``download``                          a copy on this machine
``local``                             the path of a local folder, else None
``path``, ``location_of``, ``str``    names for messages (no credentials); a location that another process can open
====================================  =================================================================================

Temporary read failures are retried (`engine.places.failures`) and end in a `ReadFailedError`. In every kind of place a
missing file raises `FileNotFoundError`, and one that may not be read `PermissionError`. `engine.places.files` has the
steps that publish a local file: write to a temporary name, fsync, rename.
"""

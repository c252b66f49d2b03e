"""Places: the one way to read and write bytes, in a folder of this machine or in a bucket.

`engine.places.opening.open_place(location)` returns a `Place`: a `Folder`, a `Bucket` (S3, GCS, Azure) or, read only,
any other file system that fsspec knows. Names are relative to the place, with `/`; the empty name is the place itself,
so that `open_place(FILE).read()` reads one file.

====================================  =================================================================================
``read``, ``read_many``               whole files; many of a bucket at once, in order
``open``                              a file to be read at any place (pyarrow, tarfile, gzip)
``find``, ``replace``                 a file with its tag, and the compare-and-swap that needs it
``put``, ``put_new``                  a small file in one step; `put_new` says whether there was none
``scratch``, ``put_file``             a large file: write it locally, then publish it
``new_folder``                        a folder, written locally; nobody reads it before it is whole
``exists``, ``entry``                 whether a file is there; what is at a name
``names``, ``children``, ``walk``     one folder's names or entries; every file below it, as a stream
``remove``, ``remove_leftovers``      a file or folder; what killed writers left
``lock``                              one writer at a time; in a bucket, the check that its puts can be conditional
``download``                          a copy on this machine
``local``                             the path of a folder of this machine, else None
``path``, ``location_of``, ``str``    names for messages (no credentials); what another process opens a name by
====================================  =================================================================================

Reads that fail for a moment are tried again (`engine.places.failures`), and raise `ReadFailedError` in the end; a file
that is not there is a `FileNotFoundError` and one that may not be read a `PermissionError`, wherever it lies.
`engine.places.files` holds the steps by which a local file appears: written aside, forced to the disk, renamed.
"""

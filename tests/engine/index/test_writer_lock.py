"""One process writes an index at a time."""

import os

from store_rows import a_file, a_photo, filled, run_python

from engine.index.store import Store


def test_a_second_writer_is_turned_away_at_once(store: Store) -> None:
    filled(store, 1)
    code = """
        import sys
        from pathlib import Path
        from engine.errors import IndexStateError
        from engine.index.store import Store
        store = Store.open(Path(sys.argv[1]))
        print(store.live_ids().tolist())
        try:
            store.mark_missing([Path("/photos/0.jpg")])
            print("written")
        except IndexStateError as error:
            print(error)
        """
    with store.writing():
        done = run_python(code, store.folder)
        store.add([a_photo(1)], [a_file(1)], [])  # nested: the lock is ours
    readable, refused = done.stdout.splitlines()
    assert readable == "[0]"
    assert f"another qseek (process {os.getpid()}) is writing the index" in refused
    assert run_python(code, store.folder).stdout.splitlines() == ["[0, 1]", "written"]

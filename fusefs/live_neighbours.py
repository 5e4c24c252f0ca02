"""Reading ahead in `live`, among what is committed: as among the neighbours in a snapshot. Loop thread only."""

from typing import Final

from fusefs.inodes import live_number
from fusefs.neighbours import SMALL_BYTES, Neighbours
from fusefs.places import Place, Row
from fusefs.trees import Trees
from repository.errors import BallastError
from repository.format.inode import DirRef, Inode
from repository.ids import FileId
from repository.live.tree import LiveTree
from repository.trees.reader import NotCached


class LiveNeighbours:
    """Tells `Neighbours` where in the latest commit something of `live` stands. What cannot be found out stays silent:
    whoever needs a record will see what is wrong with it."""

    def __init__(self, tree: LiveTree, trees: Trees, neighbours: Neighbours) -> None:
        self._tree: Final = tree
        self._trees: Final = trees
        self._neighbours: Final = neighbours

    async def listed(self, directory: FileId, committed: DirRef) -> None:
        """A directory is about to be listed, of which `committed` is what is not in memory as changes."""
        try:
            place = await self._trees.ask(self._place, directory)
        except BallastError:
            return
        if place is not None:
            await self._neighbours.listed(place)
            self._neighbours.entered(committed, place)

    def missed(self, inode: Inode) -> None:
        """A reader has to wait for a committed file."""
        if inode.size > SMALL_BYTES:
            return
        try:
            place = self._place(inode.file_id)
        except (NotCached, BallastError):
            return
        if place is not None:
            self._neighbours.missed(place, inode.size)

    def _place(self, file_id: FileId) -> Place | None:
        named = self._tree.places.get(file_id)
        if named is None:
            return None
        parent, name = named
        where = self._trees.reader.place(self._tree.listing_of(parent), name)
        return None if where is None else Place(Row(live_number(parent), where.content, where.attrs), where.position)

//! What stat(2) tells, in fuser's terms.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo};

use crate::tree::Attr;

/// How long the kernel may keep what it knows of a name and of a file's size: the tree does not change, its sizes may.
pub const NAME_TTL: Duration = Duration::from_secs(60);

/// Attributes of a file of one mount.
pub fn file_attr(ino: u64, attr: Attr, owner: (u32, u32), mounted: SystemTime) -> FileAttr {
    FileAttr {
        ino: INodeNo(ino),
        size: attr.size,
        // Fewer blocks than bytes is how cp and tar know to look for holes.
        blocks: attr.allocated.div_ceil(512),
        atime: mounted,
        mtime: mounted,
        ctime: mounted,
        crtime: mounted,
        kind: if attr.dir { FileType::Directory } else { FileType::RegularFile },
        perm: attr.perm,
        nlink: if attr.dir { 2 } else { 1 },
        uid: owner.0,
        gid: owner.1,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

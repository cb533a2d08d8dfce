//! Names of domains, from xenstore.

use std::io::Result;

use xenstore_rs::Xs as _;
use xenstore_rs::unix::XsUnix;

/// A connection to xenstore.
pub struct Store(XsUnix);

impl Store {
    /// Connects.
    ///
    /// # Errors
    /// xenstored does not listen, or not to this user.
    pub fn open() -> Result<Self> {
        XsUnix::new().map(Self)
    }

    /// The name of a domain; `None` where it has none.
    #[must_use]
    pub fn name(&self, domid: u32) -> Option<String> {
        self.0.read(&format!("/local/domain/{domid}/name")).ok().map(String::from)
    }
}

//! What tells who waits for an open file to look again.

/// Called once, from any thread, with no lock of the hub held, when there may be more to read. A boxed closure is one.
pub type Waker = Box<dyn FnOnce() + Send>;

/// Calls them.
pub fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        waker();
    }
}

//! Hardware events on their way from a driver to open files: records, filters, and who gets what.

pub mod filter;
pub mod record;

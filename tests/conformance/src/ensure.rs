//! The assertions of a check: they return the reason instead of a panic.

/// Returns from a check with these words unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($words:tt)+) => {
        if !$condition {
            return Err(format!($($words)+));
        }
    };
}

/// Returns from a check unless both are the same; the words say what they are.
macro_rules! same {
    ($found:expr, $wanted:expr, $($words:tt)+) => {
        match (&$found, &$wanted) {
            (found, wanted) => {
                if found != wanted {
                    return Err(format!("{}: found {found:#x?}, wanted {wanted:#x?}", format!($($words)+)));
                }
            }
        }
    };
}

//! The event files whose names have parameters: a number each, for as long as the kernel knows one of its names.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::events::filter::{Filter, Format};

/// Which events an event file is of, and how it shows them.
pub type EventFilter = (Filter, Format);

#[derive(Default)]
struct State {
    numbers: HashMap<EventFilter, u64>,
    filters: HashMap<u64, (EventFilter, u64)>,
    last: u64,
}

/// The numbers of filters.
#[derive(Default)]
pub struct Interned(Mutex<State>);

impl Interned {
    /// The number of a filter, held once more.
    pub fn hold(&self, filter: EventFilter) -> u64 {
        let mut state = self.0.lock();
        let number = match state.numbers.get(&filter) {
            Some(number) => *number,
            None => {
                state.last += 1;
                let number = state.last;
                state.numbers.insert(filter.clone(), number);
                number
            }
        };
        state.filters.entry(number).or_insert((filter, 0)).1 += 1;
        number
    }

    /// The filter of a number that is held.
    pub fn get(&self, number: u64) -> Option<EventFilter> {
        self.0.lock().filters.get(&number).map(|(filter, _)| filter.clone())
    }

    /// Holds it `count` times less.
    pub fn release(&self, number: u64, count: u64) {
        let mut state = self.0.lock();
        let Some((_, held)) = state.filters.get_mut(&number) else { return };
        *held = held.saturating_sub(count);
        if *held == 0
            && let Some((filter, _)) = state.filters.remove(&number)
        {
            state.numbers.remove(&filter);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.lock().filters.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmtree_api::VcpuId;

    #[test]
    fn a_filter_has_one_number_until_it_is_forgotten_as_often_as_it_was_found() {
        let interned = Interned::default();
        let of = |vcpu| (Filter { vcpu: Some(VcpuId(vcpu)), ..Filter::default() }, Format::Text);
        let one = interned.hold(of(1));
        assert_eq!(interned.hold(of(1)), one);
        assert_ne!(interned.hold(of(2)), one);
        assert_eq!(interned.get(one), Some(of(1)));
        interned.release(one, 1);
        assert_eq!(interned.get(one), Some(of(1)));
        interned.release(one, 1);
        assert_eq!((interned.get(one), interned.len()), (None, 1));
        assert_ne!(interned.hold(of(1)), one);
        for vcpu in 0..10_000 {
            interned.release(interned.hold(of(100 + vcpu)), 1);
        }
        assert_eq!(interned.len(), 2);
    }
}

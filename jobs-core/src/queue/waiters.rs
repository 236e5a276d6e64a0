//! Who waits for a job, in the order they came.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

pub(super) type Key = u64;

/// The pipelines a waiter takes jobs from.
#[derive(Clone)]
pub(super) enum Selection {
    All,
    Named(Arc<[Arc<str>]>),
}

impl Selection {
    pub(super) fn contains(&self, pipeline: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.iter().any(|name| **name == *pipeline),
        }
    }
}

struct Waiter {
    key: Key,
    selection: Selection,
    waker: Waker,
}

#[derive(Default)]
pub(super) struct Waiters {
    waiting: VecDeque<Waiter>,
    next_key: Key,
}

impl Waiters {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Registers a waiter, or renews the waker of one that still waits.
    pub(super) fn wait(&mut self, key: Option<Key>, selection: &Selection, waker: &Waker) -> Key {
        if let Some(waiter) = self.waiting.iter_mut().find(|waiter| Some(waiter.key) == key) {
            waiter.waker.clone_from(waker);
            return waiter.key;
        }
        let key = self.next_key;
        self.next_key += 1;
        let waiter = Waiter { key, selection: selection.clone(), waker: waker.clone() };
        self.waiting.push_back(waiter);
        key
    }

    /// Removes a waiter; false if it was woken before.
    pub(super) fn remove(&mut self, key: Key) -> bool {
        let index = self.waiting.iter().position(|waiter| waiter.key == key);
        index.and_then(|index| self.waiting.remove(index)).is_some()
    }

    /// Takes out the waker of whoever has waited longest for a job of this pipeline.
    pub(super) fn take_for(&mut self, pipeline: &str) -> Option<Waker> {
        let index = self.waiting.iter().position(|w| w.selection.contains(pipeline))?;
        self.waiting.remove(index).map(|waiter| waiter.waker)
    }

    pub(super) fn take_all(&mut self) -> Vec<Waker> {
        self.waiting.drain(..).map(|waiter| waiter.waker).collect()
    }
}

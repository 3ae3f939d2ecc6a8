//! What sessions knew, kept for later requests: snapshots within a bound of memory, the least recently used
//! ones forgotten first.

use gemma4::Snapshot;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Snapshots of any conversations. Shared by all sessions.
#[derive(Debug)]
pub struct PrefixStore {
    limit: u64,
    /// Bytes of a snapshot beside its keys, values and tokens: the logits.
    logits_bytes: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: Vec<Entry>,
    bytes: u64,
    /// Counts uses, in place of a clock.
    now: u64,
}

#[derive(Debug)]
struct Entry {
    snapshot: Arc<Snapshot>,
    bytes: u64,
    used: u64,
}

impl PrefixStore {
    /// A store of at most `limit` bytes, for a model of `n_vocab` tokens. A limit of 0 stores nothing.
    pub fn new(limit: u64, n_vocab: u32) -> PrefixStore {
        PrefixStore { limit, logits_bytes: 4 * u64::from(n_vocab), inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a snapshot of `bytes` may stay at all.
    pub fn has_room_for(&self, bytes: u64) -> bool {
        self.limit > 0 && bytes <= self.limit
    }

    /// Whether exactly these tokens are stored.
    pub fn contains(&self, tokens: &[u32]) -> bool {
        self.lock().entries.iter().any(|e| e.snapshot.tokens() == tokens)
    }

    /// Keeps a snapshot and forgets what no longer fits beside it.
    pub fn insert(&self, snapshot: Snapshot) {
        let bytes = snapshot.kv_bytes() + 4 * snapshot.tokens().len() as u64 + self.logits_bytes;
        if !self.has_room_for(bytes) {
            return;
        }
        let mut inner = self.lock();
        inner.now += 1;
        let used = inner.now;
        if let Some(same) = inner.entries.iter_mut().find(|e| e.snapshot.tokens() == snapshot.tokens()) {
            same.used = used;
            return;
        }
        inner.entries.push(Entry { snapshot: Arc::new(snapshot), bytes, used });
        inner.bytes += bytes;
        while inner.bytes > self.limit {
            let oldest = inner.entries.iter().enumerate().min_by_key(|(_, e)| e.used).map(|(i, _)| i);
            let Some(oldest) = oldest else { break };
            let entry = inner.entries.swap_remove(oldest);
            inner.bytes -= entry.bytes;
        }
    }

    /// The snapshot that saves most of `prompt`, if one saves more than `least` tokens.
    ///
    /// One that goes on differently can be shortened only while it lies within the model's `window`.
    pub fn best(&self, prompt: &[u32], window: usize, least: usize) -> Option<Arc<Snapshot>> {
        let mut inner = self.lock();
        inner.now += 1;
        let now = inner.now;
        let usable = |tokens: &[u32]| {
            let shared = common_prefix(tokens, prompt);
            if shared == tokens.len() || tokens.len() <= window { shared } else { 0 }
        };
        let (shared, entry) = inner
            .entries
            .iter_mut()
            .map(|entry| (usable(entry.snapshot.tokens()), entry))
            .max_by_key(|(shared, _)| *shared)?;
        (shared > least).then(|| {
            entry.used = now;
            Arc::clone(&entry.snapshot)
        })
    }

    /// Bytes and number of the snapshots.
    pub fn usage(&self) -> (u64, usize) {
        let inner = self.lock();
        (inner.bytes, inner.entries.len())
    }
}

/// Length of the beginning that two sequences share.
pub fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

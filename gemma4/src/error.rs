//! The crate's one error type.

use std::path::PathBuf;

/// A `Result` whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong. Each message says what failed, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb phrase ("open", "map into memory").
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not a well-formed GGUF file.
    #[error("{}: not a usable GGUF file: {what}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong, with byte offsets or names where they help.
        what: String,
    },
    /// The file is well formed but not a model that this crate runs, or a value in it is impossible.
    #[error("{}: {key}: found {found}, expected {expected}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// The metadata key or tensor name.
        key: String,
        /// What the file holds.
        found: String,
        /// What would have been right.
        expected: String,
    },
    /// The tokenizer in the model's metadata cannot be built or used.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// An option has a value that cannot work.
    #[error("option {option} = {value}: {why}")]
    Option {
        /// Name of the option, as in the API.
        option: &'static str,
        /// The value that was given.
        value: String,
        /// Why it cannot work, and what can.
        why: String,
    },
    /// The tokens do not fit the context of the session.
    #[error(
        "context overflow: {used} tokens are in the context and {requested} more were given, but n_ctx is {n_ctx}; \
         shorten the prompt or create the session with a larger n_ctx"
    )]
    ContextFull {
        /// Tokens already in the cache.
        used: usize,
        /// Tokens of this call.
        requested: usize,
        /// Capacity of the session in tokens.
        n_ctx: usize,
    },
    /// A token id is not in the model's vocabulary.
    #[error("token id {token} at index {index} is outside the vocabulary of {n_vocab} tokens")]
    InvalidToken {
        /// The id that was given.
        token: u32,
        /// Where in the caller's slice it stands.
        index: usize,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// More memory is needed than the device can give.
    #[error("out of memory: {what} needs {needed} bytes on {device}, {available} are available; {hint}")]
    OutOfMemory {
        /// What was about to be allocated.
        what: String,
        /// Name of the device.
        device: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes that could be had.
        available: u64,
        /// What to change.
        hint: &'static str,
    },
    /// No device of the wanted kind or name exists, or it could not be started.
    #[error("device {name}: {why}")]
    Device {
        /// Name of the device.
        name: String,
        /// What happened and what to do.
        why: String,
    },
    /// The chat template is not valid, raised an error, or was given what it cannot write.
    #[error("chat template: {0}")]
    Template(String),
    /// A grammar is malformed or too large, or nothing can satisfy it.
    #[error("grammar: {0}")]
    Grammar(String),
    /// A snapshot is damaged, or belongs to another model or other options.
    #[error("snapshot: {0}")]
    Snapshot(String),
    /// The computation was stopped by a [`CancelHandle`](crate::CancelHandle).
    #[error("cancelled")]
    Cancelled,
    /// A ggml operation would have failed its own checks, or reported a failure.
    ///
    /// Seen only when a file slipped past the checks of the loader, or by a bug of this crate.
    #[error("ggml {op}: {why}")]
    Ggml {
        /// The operation.
        op: &'static str,
        /// What did not fit.
        why: String,
    },
}

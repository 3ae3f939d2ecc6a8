//! ggml's log lines become `tracing` events.

use ggml_sys as sys;
use std::ffi::{CStr, c_char, c_void};
use std::panic::catch_unwind;

pub(super) fn install() {
    // SAFETY: the callback is a plain function that never unwinds and needs no data.
    unsafe { sys::ggml_log_set(Some(on_line), std::ptr::null_mut()) }
}

unsafe extern "C" fn on_line(level: sys::ggml_log_level, text: *const c_char, _data: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: ggml passes a NUL-terminated string that lives through the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let text = text.trim_end();
    if text.is_empty() {
        return;
    }
    // A subscriber is the user's code and may panic; a panic must not cross into C.
    let _ = catch_unwind(|| match level {
        sys::GGML_LOG_LEVEL_ERROR => tracing::error!(target: "ggml", "{text}"),
        sys::GGML_LOG_LEVEL_WARN => tracing::warn!(target: "ggml", "{text}"),
        sys::GGML_LOG_LEVEL_INFO => tracing::debug!(target: "ggml", "{text}"),
        _ => tracing::trace!(target: "ggml", "{text}"),
    });
}

//! Errors as the OpenAI API words them.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// What a request can end with instead of an answer.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// OpenAI's class of error.
    pub kind: &'static str,
    /// For a person: what is wrong and what to do.
    pub message: String,
    /// The field of the request that is at fault.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
    /// Seconds after which to try again.
    pub retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, kind, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// The request cannot be answered as it is.
    pub fn invalid(param: impl Into<Option<&'static str>>, message: impl Into<String>) -> ApiError {
        let error = ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        ApiError { param: param.into().map(str::to_owned), ..error }
    }

    /// As [`invalid`](Self::invalid), with another status and a code.
    pub fn refused(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { code: Some(code), ..ApiError::new(status, "invalid_request_error", message) }
    }

    /// The key is missing or wrong.
    pub fn unauthorized() -> ApiError {
        let message = "this server wants an API key: send the header `Authorization: Bearer KEY`";
        let error = ApiError::new(StatusCode::UNAUTHORIZED, "authentication_error", message);
        ApiError { code: Some("invalid_api_key"), ..error }
    }

    /// There is no room in the queue.
    pub fn busy(retry_after: u64) -> ApiError {
        let message = "all sessions are busy and the queue is full; try again later";
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        ApiError { code: Some("queue_full"), retry_after: Some(retry_after), ..error }
    }

    /// The server is going down.
    pub fn closing() -> ApiError {
        let error =
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", "the server is shutting down");
        ApiError { code: Some("shutting_down"), ..error }
    }

    /// Our own fault.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// The object that OpenAI's clients read.
    pub fn json(&self) -> Value {
        json!({ "error": {
            "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
        } })
    }
}

impl From<gemma4::Error> for ApiError {
    fn from(error: gemma4::Error) -> ApiError {
        use gemma4::Error;
        let message = error.to_string();
        match error {
            Error::Option { option, .. } => {
                ApiError { param: Some(option.to_owned()), ..ApiError::invalid(None, message) }
            }
            Error::ContextFull { .. } => {
                ApiError::refused(StatusCode::BAD_REQUEST, "context_length_exceeded", message)
            }
            Error::Grammar(_) => ApiError::refused(StatusCode::BAD_REQUEST, "invalid_grammar", message),
            Error::InvalidToken { .. } | Error::Template(_) | Error::Tokenizer(_) => {
                ApiError::invalid(None, message)
            }
            Error::Cancelled => ApiError::closing(),
            Error::OutOfMemory { .. } => ApiError {
                code: Some("out_of_memory"),
                ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message)
            },
            _ => ApiError::internal(message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

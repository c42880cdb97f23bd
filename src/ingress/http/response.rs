//! What a client port says in HTTP by itself.

use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    header::{self, HeaderValue},
};

/// When there is no room, or the multiplexer is being stopped: seconds until a client may
/// come again.
const RETRY_AFTER: &str = "10";

/// A short plain answer.
pub(super) fn page(status: StatusCode, text: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::copy_from_slice(text.as_bytes()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
    }
    response
}

/// There is no room now.
pub(super) fn unavailable(why: &str) -> Response<Bytes> {
    page(StatusCode::SERVICE_UNAVAILABLE, &format!("No room for this client now: {why}.\n"))
}

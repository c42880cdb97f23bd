//! Builds the responses of the admin endpoint.

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Response, StatusCode,
    header::{self, HeaderName, HeaderValue},
};

pub(super) type AdminResponse = Response<Full<Bytes>>;

/// A response of plain text. No cache keeps it, and no browser guesses another type.
pub(super) fn text(status: StatusCode, text: &str) -> AdminResponse {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    let response = with_header(response, header::CONTENT_TYPE, "text/plain; charset=utf-8");
    let response = with_header(response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    with_header(response, header::CACHE_CONTROL, "no-store")
}

/// A response of JSON, indented for people.
pub(super) fn json(status: StatusCode, value: &impl serde::Serialize) -> AdminResponse {
    match serde_json::to_string_pretty(value) {
        Ok(body) => with_header(text(status, &body), header::CONTENT_TYPE, "application/json"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}

/// Sets a header, replacing its value.
pub(super) fn with_header(mut response: AdminResponse, name: HeaderName, value: &'static str) -> AdminResponse {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
    response
}

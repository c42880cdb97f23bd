//! A client's connection, over which frames go: raw, TLS, or through a tunnel.

use std::{future::poll_fn, io, sync::Arc};

use tokio::{io::AsyncWriteExt, task::JoinHandle};

use super::{connect::connect_failure, scenario::LoadTransport, setup::WorkerSetup, streaming, tunnel};
use crate::{
    runtime::scratch,
    stream::Stream,
    wire::{
        frame::{self, First},
        tunnel::envelope::TunnelKind,
    },
};

/// The longest frame that is read, in bytes after the length field.
const MAX_FRAME: u32 = 16 * 1024 * 1024;
/// Bytes that the pipe between a client and its tunnel holds.
const PIPE: usize = 256 * 1024;

/// A frame that was received.
pub(super) struct ReceivedFrame {
    pub(super) kind: u16,
    pub(super) channel: u32,
    pub(super) body: Vec<u8>,
}

/// A connection over which frames go.
pub(super) struct FrameConnection {
    stream: Stream,
    /// The task of a tunnel, which carries the bytes of `stream`. It returns why it ended.
    tunnel: Option<JoinHandle<Result<(), String>>>,
    /// The bytes of a frame that is not complete.
    partial: Vec<u8>,
}

impl Drop for FrameConnection {
    fn drop(&mut self) {
        if let Some(tunnel) = &self.tunnel {
            tunnel.abort();
        }
    }
}

impl FrameConnection {
    /// Connects. The error is a text for the report's table of errors, as in all functions here.
    pub(super) async fn open(setup: &WorkerSetup, transport: LoadTransport) -> Result<Self, String> {
        let direct = async |tls| setup.route.direct(tls).await.map_err(|error| connect_failure(&error));
        let (stream, tunnel) = match transport {
            LoadTransport::Raw => (direct(None).await?, None),
            LoadTransport::Tls => (direct(Some(&setup.tls)).await?, None),
            LoadTransport::Polling | LoadTransport::Hybrid => {
                let kind = if transport == LoadTransport::Polling { TunnelKind::Polling } else { TunnelKind::Hybrid };
                let (near, far) = tokio::io::duplex(PIPE);
                let tunnel = tokio::spawn(tunnel::drive(kind, Arc::clone(&setup.route), setup.scenario.poll, far));
                (Stream::other(near), Some(tunnel))
            }
            LoadTransport::Streaming => {
                let (near, far) = tokio::io::duplex(PIPE);
                let tunnel = tokio::spawn(streaming::drive(Arc::clone(&setup.route), far));
                (Stream::other(near), Some(tunnel))
            }
        };
        Ok(Self { stream, tunnel, partial: Vec::new() })
    }

    pub(super) fn is_tunnel(&self) -> bool {
        self.tunnel.is_some()
    }

    pub(super) async fn send(&mut self, frame: &[u8]) -> Result<(), String> {
        let sent = async {
            self.stream.write_all(frame).await?;
            self.stream.flush().await
        };
        match sent.await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.end_reason(Some(error)).await),
        }
    }

    /// The next frame. Dropping the future before it is ready loses no bytes.
    pub(super) async fn recv(&mut self) -> Result<ReceivedFrame, String> {
        loop {
            match frame::first(&self.partial, MAX_FRAME).map_err(|error| format!("protocol: {error}"))? {
                First::Whole { head, start, end } => {
                    let body = self.partial[start + frame::LENGTH + frame::HEADER..end].to_vec();
                    self.partial.drain(..end);
                    if self.partial.is_empty() {
                        // A client that waits holds no buffer.
                        self.partial = Vec::new();
                    }
                    return Ok(ReceivedFrame { kind: head.kind, channel: head.channel, body });
                }
                First::Partial => (),
            }
            let (stream, into) = (&mut self.stream, &mut self.partial);
            match poll_fn(|cx| scratch::poll_read(stream, cx, |bytes, _| into.extend_from_slice(bytes))).await {
                Ok(Some(())) => (),
                Ok(None) => return Err(self.end_reason(None).await),
                Err(error) => return Err(self.end_reason(Some(error)).await),
            }
        }
    }

    /// Why the stream has ended. A tunnel's task knows more than the pipe to it.
    async fn end_reason(&mut self, error: Option<io::Error>) -> String {
        if let Some(tunnel) = self.tunnel.take()
            && let Ok(Err(failure)) = tunnel.await
        {
            return failure;
        }
        error.map_or_else(|| "closed by the server".to_owned(), |error| format!("broken: {}", error.kind()))
    }
}

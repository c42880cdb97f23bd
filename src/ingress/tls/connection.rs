//! A client's stream inside TLS.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use crate::stream::StreamError;

/// The stream inside TLS. Its end without close_notify is [`StreamError::Truncated`].
#[derive(Debug)]
pub(in crate::ingress) struct TlsConnection<S>(pub(super) TlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsConnection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf).map_err(StreamError::in_tls)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsConnection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_rustls::{
        TlsConnector, client,
        rustls::{ClientConfig, RootCertStore, pki_types::ServerName},
    };

    use super::*;
    use crate::ingress::tls::{Acceptor, ClientCertificates, TlsSettings, pair};

    /// The two ends of a connection after its handshake.
    async fn connected() -> (client::TlsStream<DuplexStream>, TlsConnection<DuplexStream>) {
        let folder = tempfile::tempdir().expect("folder");
        let settings = TlsSettings {
            certificate: folder.path().join("server.pem"),
            private_key: folder.path().join("server.key"),
            client_certificates: ClientCertificates::Off,
            trunk_client_ca: std::path::PathBuf::new(),
            client_ca: std::path::PathBuf::new(),
        };
        pair::make_missing(&settings.certificate, &settings.private_key).expect("a self-signed certificate");
        let acceptor = Acceptor::load(&settings).expect("it is valid");
        let mut roots = RootCertStore::empty();
        roots
            .add(crate::net::pem::certificates(&settings.certificate).expect("written").remove(0))
            .expect("a certificate");
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let name = ServerName::try_from("localhost").expect("a name");
        let (client, server) =
            tokio::join!(TlsConnector::from(Arc::new(config)).connect(name, far), acceptor.accept(near));
        (client.expect("connected"), server.map_err(|(error, _)| error).expect("accepted"))
    }

    #[tokio::test]
    async fn only_an_end_without_close_notify_is_truncation() {
        for sends_close_notify in [true, false] {
            let (mut client, mut server) = connected().await;
            client.write_all(b"bytes").await.expect("sent");
            client.flush().await.expect("sent");
            if sends_close_notify {
                client.shutdown().await.expect("sent");
            }
            drop(client);
            let mut received = Vec::new();
            let end = server.read_to_end(&mut received).await;
            assert_eq!(received, b"bytes");
            let error = end.err().map(|error| StreamError::of(&error));
            assert_eq!(error, (!sends_close_notify).then_some(Some(StreamError::Truncated)));
        }
    }
}

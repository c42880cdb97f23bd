//! A scripted Sametime client over every transport.

use std::{io, net::SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use super::{
    frames::{self, Frame},
    http::Stream,
    in_time,
    route::Route,
    streaming,
    tunnel::{self, Kind, Pace},
};

/// A transport of a client, with TLS or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Raw,
    Tls,
    Polling,
    Hybrid,
    PollingTls,
    HybridTls,
    Streaming,
    StreamingTls,
}

impl Transport {
    pub const ALL: [Self; 8] = [
        Self::Raw,
        Self::Tls,
        Self::Polling,
        Self::Hybrid,
        Self::Streaming,
        Self::PollingTls,
        Self::HybridTls,
        Self::StreamingTls,
    ];
}

/// A client on a connection, or on a tunnel session.
pub struct Client {
    from: ReadHalf<Stream>,
    into: WriteHalf<Stream>,
    next_channel: u32,
}

impl Client {
    /// Connects. Panics where the connection cannot be opened.
    pub async fn connect(transport: Transport, to: SocketAddr) -> Self {
        Self::connect_paced(transport, to, Pace::default()).await
    }

    /// As [`Self::connect`], with other waiting times of a tunnel client.
    pub async fn connect_paced(transport: Transport, to: SocketAddr, pace: Pace) -> Self {
        Self::connect_through(transport, &to.into(), pace).await.unwrap()
    }

    /// Connects by a route, for example through a proxy. A tunnel client opens its connections later, as it needs them.
    pub async fn connect_through(transport: Transport, route: &Route, pace: Pace) -> io::Result<Self> {
        let tunnelled = |kind, tls| {
            let (near, far) = tokio::io::duplex(1 << 20);
            tokio::spawn(tunnel::drive(kind, route.clone(), tls, pace, far));
            Box::new(near) as Stream
        };
        let streaming = |tls| {
            let (near, far) = tokio::io::duplex(1 << 20);
            tokio::spawn(streaming::drive(route.clone(), tls, far));
            Box::new(near) as Stream
        };
        Ok(Self::on_stream(match transport {
            Transport::Raw => route.connect(false).await?,
            Transport::Tls => route.connect(true).await?,
            Transport::Polling => tunnelled(Kind::Polling, false),
            Transport::Hybrid => tunnelled(Kind::Hybrid, false),
            Transport::PollingTls => tunnelled(Kind::Polling, true),
            Transport::HybridTls => tunnelled(Kind::Hybrid, true),
            Transport::Streaming => streaming(false),
            Transport::StreamingTls => streaming(true),
        }))
    }

    /// A client on a stream that the test has opened.
    pub fn on_stream(stream: Stream) -> Self {
        let (from, into) = tokio::io::split(stream);
        Self { from, into, next_channel: 1 }
    }

    /// Its two directions, for sending and receiving at the same time.
    pub fn split(self) -> (ReadHalf<Stream>, WriteHalf<Stream>) {
        (self.from, self.into)
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.into.write_all(bytes).await.unwrap();
        self.into.flush().await.unwrap();
    }

    pub async fn send_frame(&mut self, frame: &Frame) {
        self.send(&frame.bytes()).await;
    }

    /// The next frame; `None` at the end of the stream.
    pub async fn recv(&mut self) -> Option<Frame> {
        in_time("a frame", Frame::read(&mut self.from)).await
    }

    /// All bytes until the end of the stream.
    pub async fn recv_all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let _ = in_time("the end", self.from.read_to_end(&mut all)).await;
        all
    }

    /// Sends a Handshake and returns its HandshakeAck.
    pub async fn handshake(&mut self) -> Frame {
        self.send_frame(&frames::handshake()).await;
        let ack = self.recv().await.expect("a HandshakeAck");
        assert_eq!(ack.kind, frames::HANDSHAKE_ACK, "{ack:x?}");
        ack
    }

    /// Sends Handshake and Login, and reads their acknowledgements.
    pub async fn log_in(&mut self, name: &str) {
        self.handshake().await;
        self.send_frame(&frames::login(name, "secret")).await;
        let ack = self.recv().await.expect("a LoginAck");
        assert_eq!(ack.kind, frames::LOGIN_ACK, "{ack:x?}");
    }

    /// Opens a chat with the user `peer`. Returns its channel.
    pub async fn open_chat(&mut self, peer: &str) -> u32 {
        let channel = self.next_channel;
        self.next_channel += 1;
        self.send_frame(&frames::create_chat(channel, peer)).await;
        let accept = self.recv().await.expect("an AcceptCnl");
        assert_eq!((accept.kind, accept.channel), (frames::ACCEPT, channel), "{accept:x?}");
        channel
    }

    /// Sends an instant message.
    pub async fn send_text(&mut self, channel: u32, text: &[u8]) {
        self.send_frame(&frames::message(channel, text)).await;
    }

    pub async fn log_out(&mut self) {
        self.send_frame(&frames::log_out()).await;
    }

    /// Closes the sending direction. The multiplexer may still send.
    pub async fn shut_down(&mut self) {
        self.into.shutdown().await.unwrap();
    }
}

//! A scripted Sametime client over every way in.

use std::{io, net::SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};

use super::{
    frames::{self, Frame},
    http::Stream,
    route::Route,
    soon,
    tunnel::{self, Kind, Pace},
};

/// A way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Raw,
    Tls,
    Polling,
    Hybrid,
    PollingTls,
    HybridTls,
}

impl Way {
    pub const ALL: [Self; 6] = [Self::Raw, Self::Tls, Self::Polling, Self::Hybrid, Self::PollingTls, Self::HybridTls];
}

pub struct Client {
    from: ReadHalf<Stream>,
    into: WriteHalf<Stream>,
    next_channel: u32,
}

impl Client {
    pub async fn connect(way: Way, to: SocketAddr) -> Self {
        Self::connect_paced(way, to, Pace::default()).await
    }

    pub async fn connect_paced(way: Way, to: SocketAddr, pace: Pace) -> Self {
        Self::connect_by(way, &to.into(), pace).await.unwrap()
    }

    /// By a proxy, say. A tunnel client's connections are opened as it goes.
    pub async fn connect_by(way: Way, route: &Route, pace: Pace) -> io::Result<Self> {
        let tunnelled = |kind, tls| {
            let (near, far) = tokio::io::duplex(1 << 20);
            tokio::spawn(tunnel::drive(kind, route.clone(), tls, pace, far));
            Box::new(near) as Stream
        };
        Ok(Self::over(match way {
            Way::Raw => route.connect(false).await?,
            Way::Tls => route.connect(true).await?,
            Way::Polling => tunnelled(Kind::Polling, false),
            Way::Hybrid => tunnelled(Kind::Hybrid, false),
            Way::PollingTls => tunnelled(Kind::Polling, true),
            Way::HybridTls => tunnelled(Kind::Hybrid, true),
        }))
    }

    /// A client on a stream of the test's making.
    pub fn over(stream: Stream) -> Self {
        let (from, into) = tokio::io::split(stream);
        Self { from, into, next_channel: 1 }
    }

    /// Its two directions, for saying and hearing at once.
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

    /// The next frame; `None` at the end.
    pub async fn recv(&mut self) -> Option<Frame> {
        soon("a frame", Frame::read(&mut self.from)).await
    }

    /// Everything until the end.
    pub async fn recv_all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let _ = soon("the end", self.from.read_to_end(&mut all)).await;
        all
    }

    pub async fn handshake(&mut self) -> Frame {
        self.send_frame(&frames::handshake()).await;
        let ack = self.recv().await.expect("a HandshakeAck");
        assert_eq!(ack.kind, frames::HANDSHAKE_ACK, "{ack:x?}");
        ack
    }

    pub async fn log_in(&mut self, name: &str) {
        self.handshake().await;
        self.send_frame(&frames::login(name, "secret")).await;
        let ack = self.recv().await.expect("a LoginAck");
        assert_eq!(ack.kind, frames::LOGIN_ACK, "{ack:x?}");
    }

    /// Opens a chat; returns its channel.
    pub async fn open_chat(&mut self, peer: &str) -> u32 {
        let channel = self.next_channel;
        self.next_channel += 1;
        self.send_frame(&frames::create_chat(channel, peer)).await;
        let accept = self.recv().await.expect("an AcceptCnl");
        assert_eq!((accept.kind, accept.channel), (frames::ACCEPT, channel), "{accept:x?}");
        channel
    }

    pub async fn say(&mut self, channel: u32, text: &[u8]) {
        self.send_frame(&frames::message(channel, text)).await;
    }

    pub async fn log_out(&mut self) {
        self.send_frame(&frames::log_out()).await;
    }

    /// Closes this side; the other may still speak.
    pub async fn shut_down(&mut self) {
        self.into.shutdown().await.unwrap();
    }
}

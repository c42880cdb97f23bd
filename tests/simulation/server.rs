//! The fake Community: one server at the far end of one link.

use std::{future::Future, future::poll_fn, sync::Arc, task::Poll, time::Duration};

use parking_lot::Mutex;

use super::{
    adapter,
    ledger::{Ledger, To},
    peer::Peer,
    pipe::{Pipe, Watch, pipe},
    script::Script,
};

/// What the core gets its link from.
pub struct Community {
    pub server: Peer,
    /// What comes in at the server's end, once there is a link.
    pub watch: Mutex<Option<Watch>>,
    buffer: usize,
    answers_after: Duration,
}

impl Community {
    pub fn new(script: &Script, ledger: Arc<Mutex<Ledger>>) -> Arc<Self> {
        Arc::new(Self {
            server: Peer::new(To::Server, script.echoes, ledger),
            watch: Mutex::new(None),
            buffer: script.buffer,
            answers_after: Duration::from_millis(script.answers_after),
        })
    }

    /// A link for the session, and what its server has answered so far.
    pub async fn accept(&self, hello: &[u8], mut speaks_on: impl Future<Output = ()> + Unpin) -> (Pipe, Vec<u8>) {
        let (ours, theirs) = pipe(self.buffer);
        *self.watch.lock() = Some(theirs.watch());
        self.server.receive(hello);
        let mut answers = Box::pin(tokio::time::sleep(self.answers_after));
        let answered = poll_fn(|cx| {
            if answers.as_mut().poll(cx).is_ready() {
                return Poll::Ready(true);
            }
            std::pin::Pin::new(&mut speaks_on).poll(cx).map(|()| false)
        })
        .await;
        let mut answer = adapter::welcome();
        if !answered {
            self.server.first_words(&answer);
            answer.clear();
        }
        tokio::spawn(self.server.clone().live(theirs));
        (ours, answer)
    }
}

//! The threads that serve connections: one for each core, each with a runtime of its own.
//!
//! A connection, and the session that it becomes, stays on one thread with all its tasks: nothing
//! that wakes it crosses threads, and what is read lies in the caches of the core that writes it.

use std::{
    io,
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread::{self, JoinHandle},
};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// Where connections are served. Goes on for as long as its [`Threads`], or the present runtime, do.
pub struct Workers {
    runtimes: Box<[Handle]>,
    next: AtomicUsize,
}

impl Workers {
    /// All on the present runtime.
    pub fn here() -> Self {
        Self { runtimes: [Handle::current()].into(), next: AtomicUsize::new(0) }
    }

    /// The runtimes that connections are served on.
    pub fn runtimes(&self) -> &[Handle] {
        &self.runtimes
    }

    /// Serves a connection on the thread that has the fewest tasks: nearly all of them are a
    /// connection each.
    pub(super) fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        // Of equals another one each time.
        let first = self.next.fetch_add(1, Relaxed);
        let turn = (0..self.runtimes.len()).map(|i| &self.runtimes[(first + i) % self.runtimes.len()]);
        if let Some(least) = turn.min_by_key(|runtime| runtime.metrics().num_alive_tasks()) {
            least.spawn(connection);
        }
    }
}

/// Running threads; dropped, they end with what they serve.
pub struct Threads {
    runtimes: Vec<Handle>,
    running: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Threads {
    /// A thread for each core that this process may use.
    ///
    /// # Errors
    /// The system's, when it has no thread or descriptor left.
    pub fn start() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, NonZero::get);
        let mut this = Self { runtimes: Vec::new(), running: Vec::new() };
        for i in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let (end, ended) = oneshot::channel::<()>();
            let thread = thread::Builder::new().name(format!("worker-{i}")).spawn(move || {
                let _ = runtime.block_on(ended);
                // A look-up that hangs holds nobody back.
                runtime.shutdown_background();
            })?;
            this.runtimes.push(handle);
            this.running.push((end, thread));
        }
        Ok(this)
    }

    /// These threads as the place for connections.
    pub fn workers(&self) -> Workers {
        Workers { runtimes: self.runtimes.clone().into(), next: AtomicUsize::new(0) }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let threads: Vec<_> = self
            .running
            .drain(..)
            .map(|(end, thread)| {
                drop(end);
                thread
            })
            .collect();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, future::pending, thread::ThreadId};

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn connections_are_spread_and_end_with_the_threads() {
        let threads = Threads::start().expect("threads");
        let (workers, count) = (threads.workers(), threads.running.len());
        let (where_, mut told) = mpsc::unbounded_channel::<ThreadId>();
        for _ in 0..10 * count {
            let where_ = where_.clone();
            workers.spawn(async move {
                let _ = where_.send(thread::current().id());
                pending().await
            });
        }
        let mut on = HashMap::new();
        for _ in 0..10 * count {
            *on.entry(told.recv().await.expect("all are served")).or_insert(0) += 1;
        }
        assert_eq!((on.len(), on.values().all(|n| *n == 10)), (count, true), "{on:?}");
        drop((threads, where_));
        assert!(told.recv().await.is_none(), "none goes on");
    }
}

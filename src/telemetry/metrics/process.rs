//! The process: descriptors, memory and tasks, as the system and the runtimes report them.

use std::fs;

use parking_lot::Mutex;
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use rustix::process::{Resource, getrlimit};
use tokio::runtime::Handle;

/// Gauges that are read from the system at each scrape.
pub struct ProcessMetrics {
    open: Gauge,
    limit: Gauge,
    memory: Gauge,
    tasks: Gauge,
    runtimes: Mutex<Vec<Handle>>,
}

impl ProcessMetrics {
    pub(in crate::telemetry) fn register(all: &mut Registry) -> Self {
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            all.register(name, help, gauge.clone());
            gauge
        };
        Self {
            open: gauge("open_file_descriptors", "Descriptors in use"),
            limit: gauge("max_file_descriptors", "Descriptors that the system allows"),
            memory: gauge("resident_memory_bytes", "Memory in use"),
            tasks: gauge("tasks", "Tasks that are alive: a few for each client and connection"),
            runtimes: Mutex::default(),
        }
    }

    /// Sets the runtimes whose tasks are counted; the current one is always among them.
    pub fn set_runtimes(&self, runtimes: &[Handle]) {
        let present = Handle::current();
        let others = runtimes.iter().filter(|runtime| runtime.id() != present.id()).cloned();
        *self.runtimes.lock() = others.chain([present.clone()]).collect();
    }

    fn alive_tasks(&self) -> usize {
        self.runtimes.lock().iter().map(|runtime| runtime.metrics().num_alive_tasks()).sum()
    }

    pub(in crate::telemetry) fn refresh(&self) {
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            self.open.set(i64::try_from(open.count()).unwrap_or(i64::MAX));
        }
        self.tasks.set(i64::try_from(self.alive_tasks()).unwrap_or(i64::MAX));
        let limit = getrlimit(Resource::Nofile).current;
        self.limit.set(limit.and_then(|limit| i64::try_from(limit).ok()).unwrap_or(i64::MAX));
        let pages = fs::read_to_string("/proc/self/statm").ok().and_then(|s| s.split(' ').nth(1)?.parse::<i64>().ok());
        let page = i64::try_from(rustix::param::page_size()).unwrap_or(4096);
        self.memory.set(pages.unwrap_or(0) * page);
    }
}

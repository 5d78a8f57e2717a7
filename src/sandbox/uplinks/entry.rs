//! The sandbox's entry in the state directory, and the place where its gateway is found, made again when somebody has
//! removed them ([`super`] has the theory).
use super::*;

impl Uplinks {
    /// Make the entry in the state directory again when somebody has removed it, or some of it.
    pub(super) fn look_at_entry(&mut self) {
        let now = Instant::now();
        self.looks_after = self.looks_after.and_then(|(_, until)| (now < until).then_some((now + LOOK, until)));
        let registration = &mut self.record.registration;
        let is_new = match registration.repair() {
            Ok(is_new) => is_new,
            Err(error) => {
                tracing::debug!("the sandbox's state cannot be made again: {error}");
                let soon = self.looks_after.map_or(LOOK, |_| 10 * LOOK);
                self.looks_after = Some((now + soon, now + LOOK_AFTER));
                return;
            }
        };
        if is_new {
            self.looks_after = Some((now + LOOK, now + LOOK_AFTER));
            self.watch_entry();
        } else if !registration.path().join("state.json").exists()
            && let Err(error) = self.record.publish()
        {
            tracing::debug!("the sandbox's state cannot be written again: {error}");
        }
        self.restore_sockets(is_new);
        if is_new || self.states.has_lost_gateway() {
            self.restore_gateway();
        }
    }

    /// Listen again where a socket is gone, or all of them are.
    pub(super) fn restore_sockets(&mut self, all: bool) {
        let entry = self.record.registration.path().to_owned();
        if !entry.exists() {
            // Somebody is at it.
            return;
        }
        if self.is_listening && (all || !entry.join(requests::SOCKET).exists()) {
            self.callers.listen(&entry);
        }
        if let Some(at) = self.main.and_then(|number| self.at(number))
            && self.all[at].is_handed_over()
            && (all || !entry.join("api.sock").exists())
        {
            match self.record.registration.bind_api() {
                Ok(api) => drop(self.all[at].tell(&ToGateway::Api, &[api.as_fd()])),
                Err(error) => tracing::warn!("the sandbox's API is not served any more: {error}"),
            }
        }
    }

    /// Where the state directory was removed, others would not find the gateway of shared networks any more.
    pub(super) fn restore_gateway(&self) {
        let Some(uplink) = self.all.iter().find(|uplink| uplink.is_shared() && uplink.is_attached()) else { return };
        match self.states.bind_gateway() {
            // It is found already, or somebody else was faster.
            Ok(None) => {}
            Ok(Some(listener)) => drop(uplink.tell(&ToGateway::Listen, &[listener.as_fd()])),
            Err(error) => tracing::warn!("other sandboxes may not find the gateway of this one's networks: {error}"),
        }
    }

    /// The entry, the directory in which the gateway is found, and the one that a logout removes the runtime directory
    /// from: what is unmounted there with the entry in it says nothing itself.
    pub(super) fn watch_entry(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        let entry = self.record.registration.path();
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| entry.starts_with(dir));
        let above = runtime.as_deref().and_then(Path::parent).map(Path::to_owned);
        // <base>/sandboxes/<id>; the gateway of shared networks is found in the base.
        let base = entry.ancestors().nth(2).map(Path::to_owned);
        watch.watch_too([entry.to_owned()].into_iter().chain(base).chain(above).collect());
    }
}

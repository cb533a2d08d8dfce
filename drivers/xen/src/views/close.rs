//! How views are set anew, and taken back.

use vmtree_api::ViewId;

use super::book::View;
use crate::again::again;
use crate::events::window::Windows;
use crate::world::{World, note};

impl World {
    /// Turns alternate views off, if nothing of them is used.
    pub fn settle_views(&mut self) {
        let unused = self.views.views.len() == 1
            && self.views.views.values().all(|view| view.xen == 0)
            && self.views.pending.is_empty()
            && !self.events.windows.has_view()
            && self.events.dry.is_empty();
        if !self.views.on || !unused || !self.events.held.is_empty() {
            return;
        }
        if !self.views.found
            && let Err(error) = again(|| self.xen.set_views(false))
        {
            log::error!("alternate views stay on: {error}");
            return;
        }
        self.views.on = false;
        self.undo.done(note::VIEWS);
        self.drop_copies();
    }

    /// Sets anew what views show and allow: Xen forgets it when pages of the domain go.
    pub fn restore_views(&mut self) {
        const OP: &str = "restore views";
        let views: Vec<View> = self.views.views.values().cloned().collect();
        // It does so where a view shows other frames.
        for view in views.iter().filter(|view| view.xen != 0 && !view.shown.is_empty()) {
            for xen in [Some(view.xen), view.open].into_iter().flatten() {
                for (frame, shown) in &view.shown {
                    if let Err(error) = again(|| self.xen.change(xen, *frame, Some(shown.frame()))) {
                        log::error!("{OP}: {error}");
                    }
                }
            }
            for (frames, access) in view.rights.iter() {
                if let Err(error) = again(|| self.xen.set_access(view.xen, frames.clone(), *access)) {
                    log::error!("{OP}: {error}");
                }
            }
        }
        self.restore_dry();
    }

    /// Takes all back.
    pub fn close_views(&mut self) {
        if let Err(error) = self.set_rules(&[]) {
            log::error!("{error}");
        }
        if self.views.on {
            // Off, Xen drops all views, and puts all vCPUs on its own.
            self.views.views.retain(|number, _| *number == 0);
            self.entry(ViewId(0), |view| *view = View::default());
            self.views.pending.clear();
            self.settle_windows();
            self.drop_dry();
            self.events.windows = Windows::default();
            self.settle_views();
        }
    }
}

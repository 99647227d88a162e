"""A generation as a route makes it, from a job of the test."""

from server.answer.counts import Counts
from server.answer.generation import Generation
from server.answer.observation import Observation
from server.answer.report import Report
from server.answer.texts import Delivery
from server.protocol.fields import SparsityChoice
from server.service import Service
from server.work.job import Job


def generation_of(job: Job, service: Service, requested: SparsityChoice | None = None) -> Generation:
    """One answer to one prompt, without any options."""
    model, counts = service.models.loaded[0], Counts(job.asks)
    accounting = model.workers.engine.accounting
    report = Report(job, counts, accounting, requested)
    observation = Observation(job, counts, report, accounting, service.metrics, model.name, {})
    return Generation(job, model, counts, report, observation, Delivery(model.name, 1, 1))

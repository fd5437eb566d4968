"""The scenario: what to send, how much of it, and what counts as good; read from one YAML file."""

from loadtest.scenario.limits import Limits as Limits
from loadtest.scenario.limits import LimitsAsked as LimitsAsked
from loadtest.scenario.limits import limits_text as limits_text
from loadtest.scenario.parts import ScenarioError as ScenarioError
from loadtest.scenario.parts import SearchAsked as SearchAsked
from loadtest.scenario.parts import Stage as Stage
from loadtest.scenario.reading import parse_scenario as parse_scenario
from loadtest.scenario.reading import read_scenario as read_scenario
from loadtest.scenario.reading import scenario_body as scenario_body
from loadtest.scenario.soak import SoakAsked as SoakAsked
from loadtest.scenario.soak import soaking as soaking
from loadtest.scenario.whole import PATHS as PATHS
from loadtest.scenario.whole import Endpoint as Endpoint
from loadtest.scenario.whole import Scenario as Scenario
from loadtest.scenario.whole import Timeouts as Timeouts
from loadtest.scenario.whole import limited as limited
from loadtest.scenario.whole import searching as searching
